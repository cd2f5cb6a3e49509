"""Training data from pools of images: read, checked, scored and turned into samples with several candidates."""
