"""Mathematics: is the answer of a response the same object as the gold answer?

One public function, `verify_math`. Importing it loads math-verify and sympy, so only verifier processes do,
by the name in `pipeline.verify.table`. The modules inside, in the order in which an answer passes them:

    layers        verify_math itself: which way of comparing decides
    notation      text to one spelling, then to tokens
    words, units  numbers and synonyms in words; units of measure
    terms         tokens to trees: arithmetic
    grammar       tokens to trees: lists, relations, sets, matrices; all readings of an answer
    tree          the trees
    compare       are two trees the same object?
    sets          intervals and residue classes
    scalars       single values
    evaluate      the value of a tree, within bounds
    symbolic      math-verify, for what the others cannot read or decide
"""

from pipeline.verify.math.layers import verify_math

__all__ = ["verify_math"]
