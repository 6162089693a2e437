"""The stages of one build: one function each, `(Context) -> StageResult`."""
