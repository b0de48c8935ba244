"""From a run file and the machines at hand to the files that a scheduler takes."""
