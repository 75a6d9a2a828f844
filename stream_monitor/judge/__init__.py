"""Stage 5: two profiles become a verdict, verdicts become incidents. Pure: time is an argument."""
