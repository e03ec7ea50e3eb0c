# Prepared fMRI in, pictures out, or predicted embeddings where none are drawn; and the pictures to compare them with.
rule reconstruct_pictures:
    input:
        prepared=made(layout.PREPARED),
        embeddings=stimuli_of_subject(layout.EMBEDDINGS),
        stimuli=stimuli_of_subject(layout.STIMULI),
        model=model,
        entered=served,
        embedding_prior=prior_of,
        diffusion=network("diffusion"),
        autoencoder=network("autoencoder"),
        embedding=network("embedding"),
    output:
        pictures=made(layout.RECONSTRUCTION),
        grid=report(
            made(layout.GRID),
            caption="../report/reconstructions.rst",
            category="Reconstructions",
            subcategory="{dataset}",
            labels={"subject": "{subject}", "method": "{method}"},
        ),
    log:
        log_of(layout.RECONSTRUCTION),
    benchmark:
        benchmark_of(layout.RECONSTRUCTION)
    conda:
        "../../envs/networks.yaml"
    threads: threads_of("reconstruct")
    resources:
        **resources_of("reconstruct"),
    params:
        **call_of("reconstruct"),
    message:
        "Reconstruct what {wildcards.subject} ({wildcards.dataset}) saw, by {wildcards.method}"
    shell:
        "{params.command} 2> {log}"


rule predict_embeddings:
    input:
        prepared=made(layout.PREPARED),
        model=model,
        entered=served,
    output:
        made(layout.PREDICTION),
    log:
        log_of(layout.PREDICTION),
    benchmark:
        benchmark_of(layout.PREDICTION)
    conda:
        "../../envs/networks.yaml"
    threads: threads_of("predict")
    resources:
        **resources_of("predict"),
    params:
        **call_of("predict"),
    message:
        "Predict the image embeddings of what {wildcards.subject} ({wildcards.dataset}) saw, by {wildcards.method}"
    shell:
        "{params.command} 2> {log}"


rule decode_further:
    input:
        prepared=made(layout.PREPARED),
        trials=made(layout.FURTHER),
        embeddings=stimuli_of_subject(layout.EMBEDDINGS),
        stimuli=stimuli_of_subject(layout.STIMULI),
        candidates=candidates(layout.CANDIDATES),
        candidate_embeddings=candidates(layout.EMBEDDED_CANDIDATES),
        model=model,
        entered=served,
        embedding_prior=prior_of,
        diffusion=network("diffusion"),
        autoencoder=network("autoencoder"),
        embedding=network("embedding"),
    output:
        made(layout.DECODED),
    log:
        log_of(layout.DECODED),
    benchmark:
        benchmark_of(layout.DECODED)
    conda:
        "../../envs/networks.yaml"
    threads: threads_of("decode")
    resources:
        **resources_of("decode"),
    params:
        **call_of("decode"),
    message:
        "Decode the set {wildcards.further} of {wildcards.subject} ({wildcards.dataset}), by {wildcards.method}"
    shell:
        "{params.command} 2> {log}"


rule sample_controls:
    input:
        stimuli=made(layout.STIMULI),
        prepared=lambda wildcards: prepared(viewers(wildcards)),
        embeddings=made(layout.EMBEDDINGS),
        diffusion=network("diffusion"),
        autoencoder=network("autoencoder"),
        embedding=network("embedding"),
    output:
        made(layout.CONTROLS),
    log:
        log_of(layout.CONTROLS),
    benchmark:
        benchmark_of(layout.CONTROLS)
    conda:
        "../../envs/networks.yaml"
    threads: threads_of("reconstruct-controls")
    resources:
        **resources_of("reconstruct-controls"),
    params:
        **call_of("reconstruct-controls"),
    message:
        "Sample the controls of {wildcards.dataset} ({wildcards.stimuli}): without fMRI, and the two ceilings"
    shell:
        "{params.command} 2> {log}"
