-- What haproxy.cfg asks Keywright's verifier with. HAProxy 2.6 or newer.
-- Run by the tests, as it is here, with HAProxy 2.6.12. See README.md beside this file.

local identity = {
    "X-Keywright-Key", "X-Keywright-Namespace", "X-Keywright-Name", "X-Keywright-Owner", "X-Keywright-Scopes",
}

-- HAProxy counts lines from 0.
local function lines_of(headers, name)
    local lines = {}
    for index = 0, (headers[name] and #headers[name] or -1) do
        table.insert(lines, headers[name][index])
    end
    return lines
end

core.register_action("keywright", { "http-req" }, function(txn, question)
    local headers = txn.http:req_get_headers()
    local forwarded_for = lines_of(headers, "x-forwarded-for")
    -- The last address is the one that HAProxy itself has seen.
    table.insert(forwarded_for, txn.f:src())
    local answer = core.httpclient():get {
        url = question,
        timeout = 500, -- milliseconds; HAProxy tries four times
        headers = {
            ["authorization"] = lines_of(headers, "authorization"),
            ["x-api-key"] = lines_of(headers, "x-api-key"),
            ["x-forwarded-for"] = forwarded_for,
        },
    }
    if answer.status == 200 then
        -- Each is set, so what the client sends by these names never arrives.
        for _, name in ipairs(identity) do
            txn.http:req_set_header(name, answer.headers[name:lower()][0])
        end
        txn:set_var("txn.keywright_allows", true)
    elseif answer.status == 401 or answer.status == 403 then
        local reply = txn:reply { status = answer.status, body = answer.body }
        for _, name in ipairs { "content-type", "www-authenticate", "cache-control" } do
            for _, value in ipairs(lines_of(answer.headers, name)) do
                reply:add_header(name, value)
            end
        end
        txn:done(reply)
    end
end, 1)
