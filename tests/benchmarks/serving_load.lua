-- POSTs the lines of a file, one after another and round again: wrk … -s serving_load.lua URL -- PATH FILE [AUTHORIZATION]
local requests, at = {}, 0

function init(args)
  local headers = { ["Content-Type"] = "application/json" }
  if args[3] then headers["Authorization"] = args[3] end
  for line in io.lines(args[2]) do
    requests[#requests + 1] = wrk.format("POST", args[1], headers, line)
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency, _)
  local e = summary.errors
  io.write(string.format(
    '{"requests":%d,"seconds":%.6f,"p50":%.9f,"p99":%.9f,"refused":%d,"broken":%d,"timed_out":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6,
    e.status, e.connect + e.read + e.write, e.timeout))
end
