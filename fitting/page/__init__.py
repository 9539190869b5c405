"""The page of a study, or of two: text, tables and figures in one file, and what lies beside it."""
