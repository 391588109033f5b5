"""Documents, sessions, questions. Knows not how a model computes, nor how a file is parsed."""
