"""Its place puts this folder on the import path, so that tests in sub-folders can import ``fake_videos``."""
