"""The report stage, and what one does with finished runs: ablate one, publish one."""
