from report_fakes import drawn, fake, page  # noqa: F401  # fixtures
