"""Mathematics: is the answer of a response the same object as the gold answer?

One public function, `verify_math`. Importing it loads math-verify and sympy, so only verifier processes do,
by the name in `pipeline.verify.table`. The modules inside, in the order in which an answer passes them:

    stated        verify_math itself: which reading of a response is its answer
    layers        which way of comparing decides
    notation      text to one spelling, then to tokens
    words, units  numbers and synonyms in words; units of measure
    terms         tokens to trees: arithmetic
    grammar       tokens to trees: lists, relations, sets, matrices; all readings of an answer
    tree          the trees
    compare       are two trees the same object?
    matrices      matrices, vectors, sums of unit vectors
    sets          sets of reals: intervals, unions, inequalities in one variable
    equations     equal solutions; free constants
    scalars       single values
    evaluate      the value of a tree, within bounds
    symbolic      math-verify, for what the others cannot read or decide; factors of polynomials
"""

from pipeline.verify.math.stated import verify_math

__all__ = ["verify_math"]
