"""Reports on runs: training curves and tables as a PNG file and an HTML page."""
