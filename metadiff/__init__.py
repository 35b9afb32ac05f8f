"""The science: tensors in, tensors out. Importing this package needs torch and numpy alone, and imports neither."""
