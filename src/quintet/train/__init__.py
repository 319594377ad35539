"""Training: from a run file to a trained model. The way of a run through the modules:

check       what other libraries must accept, before anything is built
setup       the run from its run file: folder (run_folder, run_lock), compute, data, first weights (weights),
            model, optimizer and engine (build, model, loss, optimizer, parallel/), and a trial (dry_run)
loop        the steps: batch, forward and backward pass, update, callbacks; ``Run`` (run) is what they share
engine      one optimizer step on PyTorch; integrations/ has DeepSpeed's, and the loops of other trainers
callbacks   after a step, as intervals says: metrics, loss spikes (spikes), checkpoint, evaluation
evaluation  validation, samples, text modelling and benchmarks
checkpoint  writing and reading; checkpoint_files finds and checks them without PyTorch
trained     the model of a finished run, for evaluation, generation and export
"""
