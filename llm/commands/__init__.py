"""One subcommand a file; its exit code is the verdict."""
