"""The filter stage: rules, selection, the mix, examples."""
