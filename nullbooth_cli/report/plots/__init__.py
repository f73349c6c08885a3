"""Pictures, drawn with matplotlib and without a display: `canvas` has the one style, the other modules what is drawn."""
