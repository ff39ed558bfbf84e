"""From files of rows to validated conversations in leak-free splits."""
