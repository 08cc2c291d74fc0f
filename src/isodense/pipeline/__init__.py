"""What every stage stands on: errors, params, the frame of a stage, artifacts, caches."""
