"""The stages of the pipeline: their state, how they run, resume, and are planned, checked and merged."""
