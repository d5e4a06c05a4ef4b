"""Building blocks with typed shapes and named axes. They do not depend on Emu."""
