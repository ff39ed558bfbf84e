"""The wing of weights: from a base to a merged model."""

import logging

# While it is imported, it warns of optional kernels that it does not find.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
