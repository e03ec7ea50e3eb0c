# Whatever a laboratory has -> stimulus files and one prepared file per subject.
localrules:
    fetch_stimuli,
    fetch_subject,
    fetch_further,
    fetch_candidates,
    fetch_unpaired,


rule fetch_stimuli:
    output:
        made(layout.FETCHED_STIMULI),
    log:
        log_of(layout.FETCHED_STIMULI),
    benchmark:
        benchmark_of(layout.FETCHED_STIMULI)
    retries: 2
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        **resources_of("fetch", retried=True),
    params:
        **call_of("fetch", subject=whose),
        content=content_of("stimuli"),
    message:
        "Fetch the pictures shown in {wildcards.dataset}"
    shell:
        "{params.command} 2> {log}"


rule fetch_subject:
    output:
        made(layout.FETCHED),
    log:
        log_of(layout.FETCHED),
    benchmark:
        benchmark_of(layout.FETCHED)
    retries: 2
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        **resources_of("fetch", retried=True),
    params:
        **call_of("fetch"),
        content=content_of("subject"),
    message:
        "Fetch the fMRI of {wildcards.subject} ({wildcards.dataset})"
    shell:
        "{params.command} 2> {log}"


rule fetch_further:
    output:
        made(layout.FETCHED_FURTHER),
    log:
        log_of(layout.FETCHED_FURTHER),
    benchmark:
        benchmark_of(layout.FETCHED_FURTHER)
    retries: 2
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        **resources_of("fetch", retried=True),
    params:
        **call_of("fetch"),
        content=content_of("further"),
    message:
        "Fetch the set {wildcards.further} of {wildcards.subject} ({wildcards.dataset})"
    shell:
        "{params.command} 2> {log}"


rule fetch_candidates:
    output:
        made(layout.FETCHED_CANDIDATES),
    log:
        log_of(layout.FETCHED_CANDIDATES),
    benchmark:
        benchmark_of(layout.FETCHED_CANDIDATES)
    retries: 2
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        **resources_of("fetch", retried=True),
    params:
        **call_of(
            "fetch",
            further=of_candidates("further"),
            subject=of_candidates("subject"),
            stimuli=True,
        ),
        content=content_of("candidates"),
    message:
        "Fetch the pictures that {wildcards.candidates} is ranked against"
    shell:
        "{params.command} 2> {log}"


rule fetch_unpaired:
    output:
        made(layout.FETCHED_UNPAIRED),
    log:
        log_of(layout.FETCHED_UNPAIRED),
    benchmark:
        benchmark_of(layout.FETCHED_UNPAIRED)
    wildcard_constraints:
        subject=scanned(),
    retries: 2
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        **resources_of("fetch", retried=True),
    params:
        **call_of("fetch", unpaired=True),
        content=content_of("unpaired"),
    message:
        "Fetch the resting fMRI of {wildcards.subject}"
    shell:
        "{params.command} 2> {log}"


rule prepare_stimuli:
    input:
        fetched=made(layout.FETCHED_STIMULI),
    output:
        made(layout.STIMULI),
    log:
        log_of(layout.STIMULI),
    benchmark:
        benchmark_of(layout.STIMULI)
    wildcard_constraints:
        dataset=one_of(name for name in STUDY.datasets if not STUDY.is_split(name)),
    conda:
        "../../envs/data.yaml"
    threads: threads_of("stimuli")
    resources:
        **resources_of("stimuli"),
    params:
        **call_of("stimuli", subject=whose),
    message:
        "Bring the pictures of {wildcards.dataset} ({wildcards.stimuli}) to one size and one file"
    shell:
        "{params.command} 2> {log}"


use rule prepare_stimuli as prepare_pictures with:
    output:
        made(layout.PICTURES),
    log:
        log_of(layout.PICTURES),
    benchmark:
        benchmark_of(layout.PICTURES)
    wildcard_constraints:
        dataset=one_of(filter(STUDY.is_split, STUDY.datasets)),


rule split_pictures:
    input:
        pictures=made(layout.PICTURES),
        training_pictures=lambda wildcards: training_stimuli(
            layout.PICTURES, [wildcards.dataset]
        ),
        embeddings=lambda wildcards: (
            [made(layout.EMBEDDINGS, **wildcards)]
            if STUDY.splits_by_embedding()
            else []
        ),
        training_embeddings=lambda wildcards: (
            training_stimuli(layout.EMBEDDINGS, [wildcards.dataset])
            if STUDY.splits_by_embedding()
            else []
        ),
    output:
        made(layout.STIMULI),
    log:
        log_of(layout.STIMULI),
    benchmark:
        benchmark_of(layout.STIMULI)
    wildcard_constraints:
        dataset=one_of(filter(STUDY.is_split, STUDY.datasets)),
    conda:
        "../../envs/data.yaml"
    threads: threads_of("split")
    resources:
        **resources_of("split"),
    params:
        **call_of("split"),
    message:
        "Choose the test pictures of {wildcards.dataset} ({wildcards.stimuli})"
    shell:
        "{params.command} 2> {log}"


rule prepare_subject:
    input:
        fetched=made(layout.FETCHED),
        stimuli=stimuli_of_subject(layout.STIMULI),
        training_stimuli=lambda wildcards: training_stimuli(
            layout.STIMULI, [wildcards.dataset]
        ),
    output:
        made(layout.PREPARED),
    log:
        log_of(layout.PREPARED),
    benchmark:
        benchmark_of(layout.PREPARED)
    conda:
        "../../envs/data.yaml"
    threads: threads_of("prepare")
    resources:
        **resources_of("prepare"),
    params:
        **call_of("prepare"),
        content=bundled(),
    message:
        "Prepare the fMRI of {wildcards.subject} ({wildcards.dataset}): ROI voxels, z-scored per session, split by picture"
    shell:
        "{params.command} 2> {log}"


rule prepare_further:
    input:
        fetched=made(layout.FETCHED_FURTHER),
        prepared=made(layout.PREPARED),
    output:
        made(layout.FURTHER),
    log:
        log_of(layout.FURTHER),
    benchmark:
        benchmark_of(layout.FURTHER)
    conda:
        "../../envs/data.yaml"
    threads: threads_of("prepare-further")
    resources:
        **resources_of("prepare-further"),
    params:
        **call_of("prepare-further"),
    message:
        "Prepare the set {wildcards.further} of {wildcards.subject} ({wildcards.dataset}), in the voxels of its prepared file"
    shell:
        "{params.command} 2> {log}"


rule prepare_candidates:
    input:
        fetched=made(layout.FETCHED_CANDIDATES),
    output:
        made(layout.CANDIDATES),
    log:
        log_of(layout.CANDIDATES),
    benchmark:
        benchmark_of(layout.CANDIDATES)
    conda:
        "../../envs/data.yaml"
    threads: threads_of("candidates")
    resources:
        **resources_of("candidates"),
    params:
        **call_of(
            "candidates",
            further=of_candidates("further"),
            subject=of_candidates("subject"),
        ),
    message:
        "Bring the candidates of {wildcards.candidates} to one size and one file"
    shell:
        "{params.command} 2> {log}"


rule prepare_unpaired:
    input:
        fetched=made(layout.FETCHED_UNPAIRED),
    output:
        made(layout.UNPAIRED),
    log:
        log_of(layout.UNPAIRED),
    benchmark:
        benchmark_of(layout.UNPAIRED)
    wildcard_constraints:
        subject=scanned(),
    conda:
        "../../envs/data.yaml"
    threads: threads_of("prepare-unpaired")
    resources:
        **resources_of("prepare-unpaired"),
    params:
        **call_of("prepare-unpaired"),
    message:
        "Prepare the resting fMRI of {wildcards.subject}: visual cortex, averaged in short windows"
    shell:
        "{params.command} 2> {log}"


rule inspect_subject:
    input:
        prepared=made(layout.PREPARED),
        stimuli=stimuli_of_subject(layout.STIMULI),
        fetched=made(layout.FETCHED),
    output:
        made(layout.INSPECTED),
    log:
        log_of(layout.INSPECTED),
    benchmark:
        benchmark_of(layout.INSPECTED)
    conda:
        "../../envs/data.yaml"
    threads: threads_of("inspect")
    resources:
        **resources_of("inspect"),
    params:
        **call_of("inspect"),
    message:
        "Look whether the trials and the pictures of {wildcards.subject} ({wildcards.dataset}) belong together"
    shell:
        "{params.command} 2> {log}"


rule check_subjects:
    input:
        prepared=prepared(STUDY.pairs()),
        inspected=inspected(),
        unpaired=unpaired(),
    output:
        update(OVERVIEW),
    log:
        log_of(layout.OVERVIEW),
    benchmark:
        benchmark_of(layout.OVERVIEW)
    conda:
        "../../envs/data.yaml"
    threads: threads_of("overview")
    resources:
        **resources_of("overview"),
    params:
        **call_of("overview"),
        content=bundled(),
    message:
        "Check the data of all subjects before anything is trained"
    shell:
        "{params.command} 2> {log}"
