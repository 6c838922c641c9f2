"""The eight orientations in which cameras store pictures, numbered as in EXIF.

1 is upright, 2 flipped horizontally, 3 turned by 180 degrees, 4 flipped vertically, 5 transposed, 6 to be turned
clockwise, 7 transposed along the other diagonal, 8 to be turned counterclockwise. Videos store a display matrix, images
an EXIF tag.
"""

import struct
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

UPRIGHT = 1
EXIF_TAG = 0x0112
TOLERANCE = 0.0175  # sine of one degree, the tolerance of the ffmpeg command
_SIGNS = {
    # orientation by the signs of the display matrix (a, b, c, d)
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}


def from_matrix(matrix: bytes) -> int:
    """Return the orientation of a display matrix.

    The matrix shows the stored pixel (x, y) at (a x + c y, b x + d y), up to a translation. Scales are ignored.

    Args:
        matrix: Nine 32-bit integers (a, b, u, c, d, v, x, y, w) in the byte order of the machine, as in the side data
            of FFmpeg.

    Returns:
        The EXIF orientation. A matrix that is none of the eight orientations, such as a rotation by 45 degrees or a
        singular matrix, counts as upright.
    """
    if len(matrix) < 36:
        return UPRIGHT
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix[:36])
    kept, turned = min(abs(a), abs(d)), min(abs(b), abs(c))
    if max(abs(b), abs(c)) <= TOLERANCE * kept:
        b = c = 0
    elif max(abs(a), abs(d)) <= TOLERANCE * turned:
        a = d = 0
    return _SIGNS.get((_sign(a), _sign(b), _sign(c), _sign(d)), UPRIGHT)


def from_exif(image: "Image") -> int:
    """Return the EXIF orientation of an image; a missing, invalid or damaged one counts as upright."""
    try:
        value = image.getexif().get(EXIF_TAG)
    except Exception:  # Pillow raises errors of many types for damaged EXIF data
        return UPRIGHT
    return value if isinstance(value, int) and 1 <= value <= 8 else UPRIGHT


def swaps_sides(orientation: int) -> bool:
    """Whether height and width are exchanged when a picture is turned upright."""
    return orientation >= 5


def upright(picture: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return a view of a stored picture (H, W, ...) that is upright: (H, W, ...) or (W, H, ...)."""
    if swaps_sides(orientation):
        picture = picture.swapaxes(0, 1)
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return picture[:: -1 if rows else 1, :: -1 if columns else 1]


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
