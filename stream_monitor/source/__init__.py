"""Where records come from and where verdicts go."""
