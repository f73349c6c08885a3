"""Pictures, drawn with matplotlib and without a display: `canvas` has the style, each other module one kind of picture."""
