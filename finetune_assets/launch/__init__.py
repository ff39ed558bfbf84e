"""Worker processes: what they are told, how they are started, watched and stopped."""
