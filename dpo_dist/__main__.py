"""`python -m dpo_dist` is the same program as `dpo-dist`."""

from dpo_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
