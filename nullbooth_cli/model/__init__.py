"""Everything that knows diffusers: loading a pipeline, its scheduler, its denoising path, and hooks on its projections."""
