"""Results and other tools' forms of them: one module a format; `Result` has a method for each."""
