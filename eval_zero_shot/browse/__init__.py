"""A local page over studies: type a finding, see them ranked, their slices, and what agrees with it."""
