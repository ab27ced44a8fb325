"""Colours, shapes and motions of the world, the classes made of them, and the tasks made of the classes.

A class is a look and a motion ("red circle rising"). Each shares its look with the class of the opposite motion, so one
frame never gives the class away, and every word of a class occurs in other classes as well.
"""

from dataclasses import dataclass

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 36),
    "yellow": (240, 205, 40),
    "green": (36, 158, 62),
    "blue": (36, 84, 214),
    "purple": (160, 48, 190),
    "black": (22, 22, 26),
}
SHAPE_WORDS = {
    "circle": ("circle", "circle", "disc", "ball"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "cross", "plus sign"),
}
MOTION_PHRASES = {
    "rising": ("rises", "is rising", "climbs upward", "goes up", "moves up the screen", "floats to the top"),
    "falling": ("falls", "is falling", "sinks downward", "goes down", "moves down the screen", "drops to the bottom"),
    "moving left": ("moves left", "is moving left", "slides to the left", "travels from right to left", "goes left"),
    "moving right": (
        *("moves right", "is moving right", "slides to the right", "travels from left to right", "goes right"),
    ),
    "growing": ("grows", "is growing", "gets bigger", "becomes larger and larger", "expands"),
    "shrinking": ("shrinks", "is shrinking", "gets smaller", "becomes smaller and smaller", "contracts"),
    "blinking": ("blinks", "is blinking", "flashes on and off", "keeps appearing and disappearing"),
    "swinging": ("swings", "is swinging", "sways from side to side", "goes back and forth"),
}
SHAPES, MOTIONS = tuple(SHAPE_WORDS), tuple(MOTION_PHRASES)  # each motion is next to its opposite


def opposite_motion(motion: str) -> str:
    """'falling' of 'rising'."""
    return MOTIONS[MOTIONS.index(motion) ^ 1]


@dataclass(frozen=True, slots=True, order=True)
class Action:
    """A look and a motion: what an event shows."""

    colour: str
    shape: str
    motion: str

    @property
    def look(self) -> tuple[str, str]:
        """Colour and shape: what one frame shows."""
        return self.colour, self.shape

    @property
    def name(self) -> str:
        """The class name: 'red circle rising'."""
        return f"{self.colour} {self.shape} {self.motion}"


def _actions(names: str) -> tuple[Action, ...]:
    return tuple(Action(*name.split(" ", 2)) for name in names.split(", "))


# A task is a fixed order of steps; every step belongs to one task (as in COIN).
_STEPS = {
    "LightTheLamp": "red circle rising, yellow triangle moving right, blue circle growing, red circle falling",
    "OpenTheGate": "blue square falling, purple circle moving left, green square shrinking, blue square rising",
    "SetTheSail": "green star rising, red cross moving left, purple triangle blinking, red cross moving right",
    "TurnTheMill": "black star growing, yellow triangle moving left, green star falling, black star shrinking",
    "WindTheClock": "purple circle moving right, blue circle shrinking, purple triangle swinging, green square growing",
}
TASKS: dict[str, tuple[Action, ...]] = {name: _actions(steps) for name, steps in _STEPS.items()}
STEP_ACTIONS = tuple(step for steps in TASKS.values() for step in steps)
# Classes that are no step of any task; they may overlap the steps.
SIDE_ACTIONS = _actions("yellow square blinking, yellow square swinging, black cross blinking, black cross swinging")
CLASS_ACTIONS = (*STEP_ACTIONS, *SIDE_ACTIONS)
ALL_ACTIONS = tuple(Action(colour, shape, motion) for colour in COLOURS for shape in SHAPES for motion in MOTIONS)
LOOKS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
