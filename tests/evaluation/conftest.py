from evaluation_fakes import fakes, scored, scored_once, tiny  # noqa: F401  # fixtures
