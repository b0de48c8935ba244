"""What a run is, apart from doing it: its phases, directories, weights and inputs; runs that are
finished, and what a training of one takes."""
