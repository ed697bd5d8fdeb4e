"""Frame sources: cameras, streams, video files, folders, one file per kind."""
