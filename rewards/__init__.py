"""What a run was worth: by what happened in the shop first, by rules, effort and language second."""
