from vtkernels.cli import main

raise SystemExit(main())
