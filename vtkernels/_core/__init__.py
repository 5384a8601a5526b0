"""The machinery every op stands on: definition, selection of a backend, errors, environment. It knows no formula."""
