"""A study before it runs: request, checks, plan, costs; and from its start to its verdicts."""
