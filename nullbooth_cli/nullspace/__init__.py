"""Linear algebra: second moments, their spectra, and the projectors onto their null spaces."""
