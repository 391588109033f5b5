"""The application: documents, sessions, questions. It does not know how a model computes or a file is parsed."""
