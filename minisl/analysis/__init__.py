"""What SLTrain's paper and its neighbours show of trained models, on a model that trains in seconds: plain functions.

Each analysis is a function that returns arrays, beside one that draws them; `python -m minisl.analysis` draws them all.

    job         what is trained for it: a small LLaMA on bytes
    spectrum    singular values of a trained matrix, and what its best approximation of rank r leaves over
    supports    the largest entries of that residual, or random ones: does it matter where S is?
    parts       what B A and S each do in a learned W: direction by direction, and against each other
    full_rank   how dense S must be for W to have full rank
    runs        short runs side by side: supports, ranks and densities, what GaLore does with its moments
    eight_bits  a linear and a dynamic map for Adam's moments in a byte
    counting    a loss divided by one batch too many
"""
