"""Reports for people: documents (JSON), plots and HTML pages."""
