"""DICOM objects to volumes: headers, pixel data, one series as a grid, SUV."""
