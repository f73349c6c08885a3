"""What people look at: documents (JSON), plots and HTML pages."""
