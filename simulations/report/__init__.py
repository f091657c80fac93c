"""What people look at after a run: one page about it, several runs side by side, and other tools' formats."""
