"""People in pictures: data, targets, decoding, scores."""

import os

from search_spaces.files import MOST_PIXELS

# OpenCV reads it when it is first imported.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MOST_PIXELS))
