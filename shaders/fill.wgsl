// Sets 32-bit words to one value.
//
// One word for each invocation and no loop: some drivers end long loops early. Invocations are numbered through both
// dimensions of the grid, because one dimension ends at 65535 groups.

struct Job {
    // The first word, from the start of the binding.
    first: u32,
    // How many words.
    count: u32,
    value: u32,
    unused: u32,
}

@group(0) @binding(0) var<storage, read_write> words: array<u32>;
@group(0) @binding(1) var<uniform> job: Job;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = (group.y * groups.x + group.x) * 256u + lane;
    if at < job.count {
        words[job.first + at] = job.value;
    }
}
