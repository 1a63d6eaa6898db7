"""What works on a machine with one GPU: `make check-gpu`. Nothing here needs the hub."""
