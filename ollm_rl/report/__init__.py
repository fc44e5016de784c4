"""What a run or a comparison found, as tables, plots and pages that need no other file."""
