from vtkernels._core.op import Backend

BACKEND = Backend("triton", lambda phase, call: "it is not written", {})
