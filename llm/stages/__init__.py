"""What each kind of stage does: reads its inputs' folders, writes its own."""
